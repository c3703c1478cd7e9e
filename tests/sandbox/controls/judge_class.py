# family: judge
# tries: a method of a class Solution, with names that it need not import
# mode: module
# calls: [["twoSum", [[2, 7, 11], 9], [0, 1]]]
class Solution:
    def twoSum(self, nums: List[int], target: int) -> Optional[List[int]]:  # noqa: F821
        seen = defaultdict(int)  # noqa: F821
        for place, number in enumerate(nums):
            if target - number in seen:
                return [seen[target - number], place]
            seen[number] = place
        return None
